"""Asks language models for judgements: requests, endpoints, journals, prices, prompts, replies."""
