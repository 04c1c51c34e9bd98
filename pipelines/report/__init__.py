"""What a person looks at: tables, grids, cards, pages. `reports.REPORTS` lists what a run folder gets."""
