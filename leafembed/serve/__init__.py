"""The embedding server for clients of Ollama, OpenAI and text-embeddings-inference."""
