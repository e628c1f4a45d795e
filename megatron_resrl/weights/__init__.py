"""Hugging Face weights into and out of the policy's layout."""
