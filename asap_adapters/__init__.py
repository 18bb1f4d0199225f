"""The adapters: the core's decisions carried out on trio and asyncio."""
