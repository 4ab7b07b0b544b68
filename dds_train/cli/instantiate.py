"""Classes and functions that YAML files name (`_target_`). Never read from a downloaded file."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from dds_train.cli.schema import TargetSection
from dds_train.errors import UserError, first_line


def make(section: TargetSection, **options: Any) -> Any:
    """What `section` names, called with its arguments; with `_partial_`, a function of those that only the caller knows.

    Args:
        options: replace those of the section.

    Raises:
        UserError: with the constructor's own reason.
    """
    try:
        return instantiate({**section.model_dump(), **options}, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{section.target}: {first_line(error.__cause__ or error)}") from error
