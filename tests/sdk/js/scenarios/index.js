// Every scenario, in the order in which they run.

import { scenarios as connect } from './connect.js';
import { scenarios as subscribe } from './subscribe.js';
import { scenarios as serverSide } from './server_side.js';
import { scenarios as recovery } from './recovery.js';
import { scenarios as endings } from './endings.js';

export const scenarios = [...connect, ...subscribe, ...serverSide, ...recovery, ...endings];
