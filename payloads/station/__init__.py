"""What the base stations of all workloads share: control, devices, links as linkd tells them, records."""
