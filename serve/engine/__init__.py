"""What paints inside one replica."""
