"""Where bytes lie: URLs, atomic files, tables, images, checksums."""
