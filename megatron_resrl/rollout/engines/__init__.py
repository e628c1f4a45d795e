"""Engines: what turns prompts into responses, and what stands around or in place of one."""
