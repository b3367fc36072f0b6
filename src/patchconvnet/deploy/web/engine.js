// Who answers. `patchconvnet serve` serves this file as it is; `patchconvnet export --to web` writes its own line here.
export { engine } from "./engine_server.js";
