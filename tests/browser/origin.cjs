// Which pack and version each node of a saved graph comes from, as ComfyUI Manager writes it: `cnr_id` and `ver`.
// Whoever opens the graph without the pack is then told by name what to install.
const fs = require('fs')
const path = require('path')

const PROJECT = fs.readFileSync(path.join(__dirname, '..', '..', 'pyproject.toml'), 'utf8')
const own = (field) => new RegExp(`^${field} = "([^"]+)"`, 'm').exec(PROJECT)[1]

// Adds both to the properties of each of `nodes`, the nodes of a serialised graph. The frontend's own notes get none.
async function addOrigin(page, nodes) {
  const { modules, comfyui } = await page.evaluate(async (types) => ({
    modules: Object.fromEntries(types.map((type) =>
      [type, LiteGraph.registered_node_types[type]?.nodeData?.python_module || ''])),
    comfyui: (await app.api.getSystemStats()).system.comfyui_version
  }), nodes.map((node) => node.type))
  const core = { cnr_id: 'comfy-core', ver: comfyui }
  const ours = { cnr_id: own('name'), ver: own('version') }
  for (const node of nodes) {
    const [root, pack] = modules[node.type].split('.')
    if (['nodes', 'comfy_extras'].includes(root)) Object.assign(node.properties, core)
    if (root === 'custom_nodes' && pack === own('name')) Object.assign(node.properties, ours)
  }
}

module.exports = { addOrigin }
