"""What is known of any ATen graph: its operators, shapes, dataflow, constants and ends."""
