"""The trusted signing helper and the wire types it shares with its clients."""
