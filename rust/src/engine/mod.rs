//! One step of serving: schedule, (the model runs), update.
