"""The network that is trained, and how it is saved and loaded."""

from dds_train.translator.checkpoint import TranslatorCard, export_translator, load_translator
from dds_train.translator.unet import Translator, UNetTranslator

__all__ = ["Translator", "TranslatorCard", "UNetTranslator", "export_translator", "load_translator"]
