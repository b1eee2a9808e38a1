"""Publishing a checkpoint folder on a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drope.errors import DropeError, InputError


def push(
    folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False, endpoint: str | None = None
) -> dict[str, Any]:
    """Upload a folder that drope wrote, in one commit, to `repo` (made if it does not exist).

    Parameters
    ----------
    repo : owner/name
    dry_run : only say what would be uploaded; no network
    endpoint : of the hub, where it is not the default one

    Returns
    -------
    `repo`, `files` (name -> bytes), and `url` of the commit (None for a dry run)

    Raises
    ------
    InputError : not a folder of ours, a card that hubs cannot read, or no name
    DropeError : the hub refused; its words
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError("--push-to-hub", repo, "owner/name")
    if not (folder / "drope.json").exists() or not (folder / "README.md").exists():
        raise InputError("model", str(folder), "a folder that drope wrote, with drope.json and README.md")
    try:
        ModelCard.load(folder / "README.md")
    except ValueError as error:
        raise InputError(
            "README.md", str(folder / "README.md"), "front matter that hubs can read", str(error)
        ) from error
    files = {f.relative_to(folder).as_posix(): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    if dry_run:
        return {"repo": repo, "files": files, "url": None}
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Position-free checkpoint made with drope"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DropeError(f"{repo} could not be uploaded: {error}") from error
    return {"repo": repo, "files": files, "url": str(done.commit_url)}
