"""What several views know together: their agreement, and a plane sweep around the aligned prior."""
