"""Where bytes lie: folders and files here, URLs, and what is served to a browser on this machine."""
