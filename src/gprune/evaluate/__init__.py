"""The paper's measurements: runs over benchmarks, tables, figures, throughput."""
