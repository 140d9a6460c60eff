"""Hugging Face folders <-> Megatron parameters."""
