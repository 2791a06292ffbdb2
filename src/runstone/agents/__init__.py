"""Agents that come with Runstone, each a module with one `register(app)`; none is imported until asked for.

- `report` looks through a folder and writes down what it found; needs nothing.
- `shell` runs a command that the person typed; only for `demo` on loopback.
- `chat` talks to any OpenAI-compatible endpoint; needs `runstone[openai]`.
"""
