// An API prompt -> the subgraph blueprint that ComfyUI lists under Blueprints: one node, with the widgets it shows.
const { arrange, ROOM } = require('./layout.cjs')
const { addOrigin } = require('./origin.cjs')

const DESCRIPTION = 'Restores and enlarges a photograph with the model that comes with TEASR; open it for the parts.'
const ALIASES = ['upscale', 'restore', 'super resolution', 'enhance', 'teasr']
// Input and output of the blueprint; everything between them goes inside.
const OUTSIDE = ['LoadImage', 'SaveImage']
// Widgets on the blueprint's node, in this order: [node type, widget].
const PROMOTED = [
  ['TEASRCondition', 'size.scale'], ['TEASRStepSelector', 'steps'], ['TEASRSampler', 'seed'],
  ['TEASRColorFix', 'color_fix']
]

async function blueprint(page, api, name) {
  await page.evaluate(([api, name]) => app.loadApiJson(api, name), [api, name])
  await page.evaluate(arrange, ROOM)
  const result = await page.evaluate(({ name, description, aliases, outside, promoted }) => {
    const inner = app.graph.nodes.filter((node) => !outside.includes(node.type))
    for (const node of inner)
      for (const widget of node.widgets || []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
    const { subgraph, node } = app.graph.convertToSubgraph(new Set(inner))
    for (const [type, widgetName] of promoted) {
      const source = subgraph.nodes.find((inside) => inside.type === type)
      const widget = source.widgets.find((found) => found.name === widgetName)
      const slot = source.getSlotFromWidget(widget)
      const inputName = widgetName.split('.').at(-1)
      // The frontend itself puts a bare seed socket out: a widget takes its place.
      const bare = subgraph.inputs.find((found) => found.name === inputName)
      if (bare) subgraph.removeInput(bare)
      const input = subgraph.addInput(inputName, String(slot.type))
      if (!input.connect(slot, source)) throw new Error(`${type}.${widgetName} could not be promoted`)
    }
    subgraph.name = node.title = name
    for (const other of app.graph.nodes.filter((other) => other !== node)) app.graph.remove(other)
    node.pos = [0, 0]
    const graph = app.graph.serialize()
    const [definition] = graph.definitions.subgraphs
    Object.assign(definition, { description, category: 'TEASR' })
    graph.extra = { BlueprintDescription: description, BlueprintSearchAliases: aliases }
    delete graph.id
    return {
      graph,
      inputs: subgraph.inputs.map((input) => input.name),
      outputs: subgraph.outputs.map((output) => output.name),
      inside: subgraph.nodes.map((inside) => inside.type).sort()
    }
  }, { name, description: DESCRIPTION, aliases: ALIASES, outside: OUTSIDE, promoted: PROMOTED })
  await addOrigin(page, result.graph.definitions.subgraphs[0].nodes)
  return result
}

module.exports = { blueprint }
