"""Safetensors folders: read tensor by tensor, written shard by shard, resumed from a journal."""
