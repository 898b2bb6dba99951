"""The ladder: one matrix product as a sequence of C++ files, each with one idea more. Read README.md beside this."""
