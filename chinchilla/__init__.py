"""Chinchilla: the best transformer your compute can buy."""
