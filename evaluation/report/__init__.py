"""Results for people: tables, figures, and the forms of other tools."""
