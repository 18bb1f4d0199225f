"""Where requests may go and come from: URLs, addresses, interfaces, proxies."""
