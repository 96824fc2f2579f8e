"""Other projects' files and official numbers: AlpacaEval, FastChat, Arena-Hard."""
