"""Text to token ids and back, as the model's file says."""

from pyruntime.tokenizer.detokenizer import Detokenizer
from pyruntime.tokenizer.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
