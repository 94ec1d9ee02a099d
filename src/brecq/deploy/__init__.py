"""Deployment: results as files that runtimes execute, an integer simulator, and the proof that both agree."""
