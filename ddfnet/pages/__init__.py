"""Self-contained HTML pages, and the colors that they share with the figures."""
