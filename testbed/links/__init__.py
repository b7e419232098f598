"""Link scenarios, shaping plans and their verification."""
