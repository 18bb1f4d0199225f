"""Agents on the local network: DNS-SD records and what to announce."""
