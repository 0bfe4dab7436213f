"""The engine that paints inside one replica."""
