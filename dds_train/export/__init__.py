"""Translators for the world outside this package: a diffusers folder, an ONNX graph. Both run without it."""

from dds_train.export.diffusers_folder import export_diffusers
from dds_train.export.onnx_folder import export_onnx

__all__ = ["export_diffusers", "export_onnx"]
