"""Who a caller is and how it proves that, for servers and clients: bearer tokens, JWT, DPoP, OAuth 2."""
