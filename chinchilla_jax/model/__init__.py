"""The decoder, on one device: logical axis names only, no mesh."""
