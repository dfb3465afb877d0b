"""What every floor needs and what needs none of them: files, chips, and how numbers are written for people."""
