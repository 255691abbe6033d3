"""What was delivered: journal, ledger, spots, treatment record, report."""
