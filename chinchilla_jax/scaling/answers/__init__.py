"""What should be trained? In: a law and a question. Out: tables of choices and what each costs."""
