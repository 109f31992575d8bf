"""Parts of the papers' released codes that no family uses, and their parity with recorded numbers."""
