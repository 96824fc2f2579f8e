"""How a language model is asked to judge: requests, endpoints, journals, prices, prompts, replies."""
