"""The base station as an OpenAI-compatible service: text over HTTP in, tokens of the engine out."""
