import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.strimzi.api.kafka.model.kafka.Kafka;
import io.strimzi.api.kafka.model.nodepool.KafkaNodePool;
import java.io.File;
import java.util.Iterator;
import java.util.Map;

/**
 * Reads resources by the classes with which Strimzi's operator reads them, writes them again, and prints every field
 * that got lost or was kept as unknown: a field that the operator would pass over. Prints nothing when all is well.
 */
public class StrimziModels {
    private static final ObjectMapper MAPPER = new ObjectMapper();
    private static final Map<String, Class<?>> CLASSES = Map.of("Kafka", Kafka.class, "KafkaNodePool", KafkaNodePool.class);

    public static void main(String[] arguments) throws Exception {
        for (JsonNode resource : MAPPER.readTree(new File(arguments[0]))) {
            String kind = resource.get("kind").asText();
            Object read = MAPPER.treeToValue(resource, CLASSES.get(kind));
            lookForUnknown(read, kind);
            lookForLost(resource, MAPPER.valueToTree(read), kind);
        }
    }

    /** Every class of the models keeps what it does not know in a map of its own. */
    private static void lookForUnknown(Object model, String place) throws Exception {
        if (model == null || !model.getClass().getName().startsWith("io.strimzi.")) {
            return;
        }
        for (var method : model.getClass().getMethods()) {
            if (method.isBridge() || method.getParameterCount() > 0 || !method.getName().startsWith("get")) {
                continue;
            }
            if (method.getName().equals("getAdditionalProperties")) {
                for (Object name : ((Map<?, ?>) method.invoke(model)).keySet()) {
                    System.out.println(place + ": unknown field " + name);
                }
            } else if (!method.getName().equals("getClass")) {
                Object value = method.invoke(model);
                if (value instanceof Iterable<?> values) {
                    for (Object one : values) {
                        lookForUnknown(one, place + "." + method.getName());
                    }
                } else {
                    lookForUnknown(value, place + "." + method.getName());
                }
            }
        }
    }

    private static void lookForLost(JsonNode written, JsonNode read, String place) {
        for (Iterator<String> names = written.fieldNames(); names.hasNext();) {
            String name = names.next();
            if (read == null || !read.has(name)) {
                System.out.println(place + ": lost " + name);
            } else if (written.get(name).isObject()) {
                lookForLost(written.get(name), read.get(name), place + "." + name);
            }
        }
    }
}
