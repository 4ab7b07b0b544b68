"""Upload of a folder to the Hugging Face hub."""

from pathlib import Path

from dds_train.errors import UserError, first_line
from dds_train.runs.record import RECORD

LOCAL = [".*", RECORD]  # locks, and a record with paths of this machine


def upload(folder: Path, repository: str) -> str:
    """Create `repository` (owner/name) if it does not exist, and upload the files of `folder`.

    Returns:
        the address of the commit.

    Raises:
        UserError: with the reason, if the hub refuses.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=LOCAL))
    except Exception as error:  # whatever the hub's client raises when it cannot deliver
        reason = first_line(error)
        raise UserError(f"push={repository}: the hub did not take {folder} ({reason}); log in with: hf auth login") from error
