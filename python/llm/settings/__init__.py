"""Every setting is declared once, here: its type, range, default and meaning."""
