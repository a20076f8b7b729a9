"""Weft: one design space for multimodal large language models."""

__version__ = "0.1.0"
