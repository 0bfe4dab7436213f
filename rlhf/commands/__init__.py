"""The functions behind `rlhf COMMAND`; their heavy imports stay inside them."""
