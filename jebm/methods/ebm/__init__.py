"""One energy network, learnt by any rule of `jebm.learning`."""
