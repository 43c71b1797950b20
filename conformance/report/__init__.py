"""What a judgement consists of and how it is shown: terminal, JSON, one HTML page."""
